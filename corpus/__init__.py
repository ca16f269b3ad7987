"""What a corpus is: its manifest, the names it may have, its labels and their policies."""
