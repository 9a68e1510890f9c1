"""How several processes train together: sharding, and what is refused."""
