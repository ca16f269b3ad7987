"""What is done to a store beside reading and writing it: checks, removal, imports, exports, copies."""
