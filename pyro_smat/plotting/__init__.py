"""Plotting: how all figures look. Arrays and Matplotlib axes in; figures and SVG that follow the page's theme out."""
