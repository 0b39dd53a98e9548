"""x @ w for resident weights w. `api` is what users call."""
