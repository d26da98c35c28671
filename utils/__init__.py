"""What any training code needs: processes, checkpoints, weights from files, metrics, logging."""
