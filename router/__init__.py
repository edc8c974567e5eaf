"""azureml-fe: an inference router in front of deployed models."""

__version__ = "0.1.0"
