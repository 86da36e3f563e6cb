"""How the constants of the regimes and of the watch were fitted, and what the rules reach."""
