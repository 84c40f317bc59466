"""One file a search space; each names it SPACE."""
