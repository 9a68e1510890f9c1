"""Metrics: kept as sums and counts, so that neither padding nor the split over ranks can bend them."""
