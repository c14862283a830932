"""What plans are held against: placements at maximum clock, one clock for all, the operator oracle."""
