"""What it cost: FLOPs, bytes and seconds, by observers that change nothing."""
