"""What a path holds: a sheet of columns, and what its columns say."""
