"""A case as one xarray Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray

from livprep.store import layout

if TYPE_CHECKING:
    from livprep.store.reading import CaseStore


def case_dataset(case: CaseStore) -> xarray.Dataset:
    """Merge the case's arrays; they are read when used. See `CaseStore.to_xarray`."""
    scan = _image(case, f"{layout.HU}/{layout.IMAGE}").rename("hu")
    merged: dict[str, xarray.DataArray] = {"hu": scan}
    if case.has_labels:
        merged["label"] = _image(case, f"{layout.HU}/{layout.LABELS}/{layout.LABEL_IMAGE}")
    names = case.window_names
    if names:
        channels = [_image(case, f"{layout.WINDOWS}/{name}/{layout.IMAGE}") for name in names]
        merged["windows"] = xarray.concat(channels, dim=xarray.Variable("channel", names))
    return xarray.Dataset(merged, attrs={"case": case.case_id, "orientation": "LPS", "units": "HU"})


def _image(case: CaseStore, name: str) -> xarray.DataArray:
    dataset = xarray.open_dataset((case.path / name).parent, engine="zarr", chunks={}, consolidated=False)
    image: xarray.DataArray = dataset["image"]
    return image
