"""The one loop, and the protocol by which a stage of life hands it batches and a loss."""
