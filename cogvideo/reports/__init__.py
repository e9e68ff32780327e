"""Reports: a sweep's table, or one set of weights, as a self-contained page that is fit to be printed."""
