"""A study on the web: the folder of a Space, a private data set, and servers that journal to it."""
