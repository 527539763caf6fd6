"""Conditions by layer: plans at places in a model, paired with their controls, task by task.

What several analyses share: what is changed where is a table's columns, every change is compared
with the untouched model on the same questions, and with the same done to tokens drawn at random.
"""
