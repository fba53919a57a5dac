"""As large as LAION: a trainer's first batch of 400 million samples, and a driver of 100,000 shards."""
