"""The log of an online experiment: conversion and revenue by user and item segment."""

from learn_rank.evaluation.experiment.compare import evaluate_experiment
from learn_rank.evaluation.experiment.report import ExperimentReport
from learn_rank.evaluation.experiment.text import format_experiment
from learn_rank.evaluation.experiment.write import write_experiment

__all__ = ["ExperimentReport", "evaluate_experiment", "format_experiment", "write_experiment"]
