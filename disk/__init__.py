"""Files on disk: what a user names is read with distrust, what ser writes is whole or not there."""
