"""One file a command; each has `add`, which describes it to the parser, and a function that runs it."""
