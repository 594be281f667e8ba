"""The packages of the wheel: vlad, and configs/ as vlad.configs, where `vlad train tiny` finds them."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["vlad", "vlad.*"]), "vlad.configs"], package_dir={"vlad.configs": "configs"})
