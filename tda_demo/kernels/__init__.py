"""HOW a block restricted to its active neurons is computed; ``reference`` is the specification."""
