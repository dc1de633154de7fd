"""The log of an online experiment: conversion and revenue by user and item segment."""

from learn_rank.evaluation.experiment.compare import evaluate_experiment

__all__ = ["evaluate_experiment"]
