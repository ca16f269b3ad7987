"""A sweep: the cells of a recipe, such as a paper's table, each run trained once."""
