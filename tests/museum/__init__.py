"""Published defenses that were broken, small, and what an attacker made automatically leaves of them."""
