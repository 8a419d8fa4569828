"""Recognises data sets: layouts of folders, annotation files, tables, lists of classes."""
