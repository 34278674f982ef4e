"""From a trained model to a file that other runtimes take: `refinedet.export`, one module for each format."""
