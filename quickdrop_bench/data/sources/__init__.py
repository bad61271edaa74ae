"""One module for each kind of data set; a module here is found by itself."""
