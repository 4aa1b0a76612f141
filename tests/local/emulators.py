"""The emulator of each vendor: `EMULATOR` in the file of its name; on Modellix's all others build."""

from importlib import import_module

from taskhook.vendors import VENDORS
from tests.local.vendor import VendorEmulator

EMULATORS: dict[str, type[VendorEmulator]] = {
    name: VendorEmulator if name == "modellix" else import_module(f"tests.local.{name}").EMULATOR
    for name in VENDORS
}
