"""One page a module; each has a function `page` that draws it."""
