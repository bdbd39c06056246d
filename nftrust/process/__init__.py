"""The process model: a supervisor reserves the ports and keeps fronts alive behind them."""
