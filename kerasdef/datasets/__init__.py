"""Data sets as NumPy arrays: loading, checking and splitting, without importing TensorFlow or Keras."""

from kerasdef.datasets.dataset import Dataset as Dataset
from kerasdef.datasets.sources import DATASETS as DATASETS
from kerasdef.datasets.sources import DatasetNotFound as DatasetNotFound
from kerasdef.datasets.sources import Info as Info
from kerasdef.datasets.sources import as_dataset as as_dataset
from kerasdef.datasets.sources import load as load
from kerasdef.datasets.sources import load as load_dataset

__all__ = ["DATASETS", "Dataset", "DatasetNotFound", "Info", "as_dataset", "load", "load_dataset"]
