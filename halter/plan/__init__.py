"""What training or asking a model will take, before anything is loaded."""

from __future__ import annotations

from halter.plan.forecast import Forecast, forecast
from halter.plan.setting import Setting

__all__ = ["Forecast", "Setting", "forecast"]
