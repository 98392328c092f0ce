"""What several attacks share: directions, boundaries, projections, objectives."""
