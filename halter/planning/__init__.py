"""What training or asking a model will take, before anything is loaded."""

from __future__ import annotations

from halter.planning.forecast import Forecast, forecast
from halter.planning.setting import Setting

__all__ = ["Forecast", "Setting", "forecast"]
