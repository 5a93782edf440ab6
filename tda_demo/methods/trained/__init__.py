"""Training for the methods that need it: what is learned, on which text, and the file it is kept in."""
