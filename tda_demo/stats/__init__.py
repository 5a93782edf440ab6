"""Every number shown anywhere, and how far it is known: definitions, intervals, estimates over clusters."""
