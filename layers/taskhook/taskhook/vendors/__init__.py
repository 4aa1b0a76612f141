"""One file for each vendor: its requests, and what its answers mean. Here they are listed."""

from taskhook.core.vendor import Vendor
from taskhook.vendors.ark import ARK
from taskhook.vendors.dashscope import DASHSCOPE
from taskhook.vendors.modellix import MODELLIX
from taskhook.vendors.runway import RUNWAY

VENDORS: dict[str, Vendor] = {vendor.name: vendor for vendor in (MODELLIX, DASHSCOPE, RUNWAY, ARK)}
