"""The files that challenges take: columns and words, a TOML file each."""
