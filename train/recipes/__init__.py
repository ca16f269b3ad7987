"""The papers' tables as sets of cells, one TOML file each."""
