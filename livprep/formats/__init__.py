"""Readers and writers of outside files: zips, DICOM, NIfTI. The only users of pydicom and nibabel."""
