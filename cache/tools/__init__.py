"""What is done to a store as a whole: listing, checks, removal, imports, exports and copies."""
