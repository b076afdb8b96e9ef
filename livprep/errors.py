"""What can go wrong, each with a stable code.

Every error of the product is a `LivError` with a code of `CODES`. The text says what the subject is, what was
found, what was expected with its unit, and what to do; it never quotes header text of a patient.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass


@dataclass(frozen=True)
class CodeInfo:
    """What one code means, what to do about it, and the exit code of a command that ends with it alone."""

    meaning: str
    remedy: str
    exit_code: int


_CASE = 3  # a case was rejected
_USAGE = 2

CODES: dict[str, CodeInfo] = {
    # usage and store
    "USAGE": CodeInfo("The command line does not fit the command.", "See --help of the command.", _USAGE),
    "NO_WINDOWS": CodeInfo(
        "The store holds no windowed channels and --windows names none.",
        "Run `livprep window --wl 40 --ww 220`, or give `livtrain fit --windows hu:40/220`.",
        _USAGE,
    ),
    "STORE_MISSING": CodeInfo(
        "There is no store at the given path.", "Run `livprep ingest` first or pass --store.", _USAGE
    ),
    "STORE_UNREADABLE": CodeInfo(
        "The path exists but is no readable livprep store.",
        "Check --store, or restore the store from a copy.",
        _USAGE,
    ),
    "STORE_NEWER": CodeInfo("The store was written by a newer livprep.", "Update livprep.", _USAGE),
    "STORE_PREPARATION": CodeInfo(
        "The store was prepared differently (spacing, interpolation or profile).",
        "Use another --store, or --replace to rebuild the cases.",
        _USAGE,
    ),
    "STORE_EMPTY": CodeInfo("The store holds no cases.", "Run `livprep ingest` first.", _USAGE),
    "STORE_CASE_UNKNOWN": CodeInfo("No such case in the store.", "See `livprep info`.", _USAGE),
    "STORE_CORRUPT": CodeInfo(
        "A published case does not match its manifest.", "Ingest the case again with --replace.", 4
    ),
    # what verify finds; exit 4 where it is damage
    "STORE_FILE_MISSING": CodeInfo(
        "A file of a published case is missing or is no plain file.", "Ingest the case again with --replace.", 4
    ),
    "STORE_FILE_EXTRA": CodeInfo(
        "A file lies in a published case that its manifest does not list.",
        "Remove it, or ingest the case again with --replace.",
        4,
    ),
    "STORE_SIZE": CodeInfo(
        "A file of a published case has another size than its manifest says.",
        "Ingest the case again with --replace.",
        4,
    ),
    "STORE_HASH": CodeInfo(
        "A file of a published case has another content than its manifest says.",
        "Ingest the case again with --replace.",
        4,
    ),
    "STORE_MANIFEST": CodeInfo(
        "The manifest of a component is damaged or belongs to another case.",
        "Ingest the case again with --replace; a window: --remove it and add it again.",
        4,
    ),
    "STORE_DECODE": CodeInfo(
        "An array of a published case cannot be decoded.", "Ingest the case again with --replace.", 4
    ),
    "STORE_WINDOW": CodeInfo(
        "A stored channel is not its window of the stored HU.",
        "Run `livprep window --remove NAME` and add it again.",
        4,
    ),
    "STORE_PACKED": CodeInfo(
        "The packed training array does not agree with HU and labels.", "Ingest the case again with --replace.", 4
    ),
    "STORE_INDEX": CodeInfo(
        "The sampling index does not agree with the labels.", "Ingest the case again with --replace.", 4
    ),
    "STORE_ATTRIBUTES": CodeInfo(
        "Attributes are damaged or do not agree with the arrays.", "Ingest the case again with --replace.", 4
    ),
    "STORE_CONSOLIDATED": CodeInfo(
        "The consolidated metadata of a case are not those of the files below it.",
        "Run `livprep window` again; if that does not help, ingest the case again with --replace.",
        4,
    ),
    "STORE_SPLIT": CodeInfo(
        "A recorded split is damaged, or names cases that the store does not hold.",
        "Record it again with `livprep split`.",
        4,
    ),
    "STORE_STAGING": CodeInfo(
        "Work that a killed run left behind, or that a run is doing now.", "Run `livprep gc` once no run is active.", 0
    ),
    "STORE_DIFFERS": CodeInfo(
        "A stored case is not what its source gives.", "Ingest the case again with --replace.", 4
    ),
    "STORE_CASE_MISSING": CodeInfo("The sources hold a case that the store does not.", "Run `livprep ingest`.", 4),
    "STORE_CASE_EXTRA": CodeInfo(
        "The store holds a case that the given sources do not.", "Give its source too, or `livprep remove` it.", 0
    ),
    "STORE_WINDOW_EXISTS": CodeInfo(
        "A window of that name with other settings is stored.",
        "Choose another --name or --remove it first.",
        _USAGE,
    ),
    "WINDOW_INVALID": CodeInfo(
        "The window is not usable.", "The width must be positive and both values finite.", _USAGE
    ),
    "CATALOG_INVALID": CodeInfo("The catalogue does not parse.", "See `livprep catalog`.", _USAGE),
    "CONFIG_INVALID": CodeInfo("A setting is unknown or out of range.", "See `livtrain fit --help`.", _USAGE),
    "SPLIT_INVALID": CodeInfo("The split does not fit the store or crosses patients.", "See `livprep split`.", _USAGE),
    "RUN_MISSING": CodeInfo("The run folder or its checkpoint is missing.", "Run `livtrain fit` first.", _USAGE),
    "RUN_EXISTS": CodeInfo(
        "The run folder already holds a run.", "Pass --resume to continue it or another --run.", _USAGE
    ),
    "CHECKPOINT_CORRUPT": CodeInfo("A checkpoint does not match its hash.", "Use the other checkpoint of the run.", 4),
    "EXPORT_DIFFERS": CodeInfo(
        "An exported network does not compute what the run's network computes.",
        "Nothing was written; report it with the versions of torch and of the format's library.",
        4,
    ),
    "PREDICTION_MISSING": CodeInfo(
        "There is no prediction of the case, or none at all.",
        "Give the folder that `livtrain predict -o` wrote.",
        _USAGE,
    ),
    "EVALUATE_UNPAIRED": CodeInfo(
        "Predictions and references do not pair.", "Name both by case, or remove the extra files.", _USAGE
    ),
    "GEOMETRY": CodeInfo("Two arrays that must share a grid do not.", "Use the files of the same scan.", _CASE),
    # sources
    "NOTHING_FOUND": CodeInfo(
        "Nothing that the command reads lies under the given paths.",
        "Point at the data: for ingest at what holds 3Dircadb1.N folders or volume-N.nii files, or pass --catalog for "
        "scans of your own; for predict at DICOM or NIfTI. `livprep inspect` shows what is there.",
        _CASE,
    ),
    "CASE_UNKNOWN": CodeInfo(
        "A scan in the layout of a data set has a number that the catalogue does not list.",
        "Rename the folder to its original name or pass --catalog.",
        _CASE,
    ),
    "CASE_DUPLICATE": CodeInfo("The same case was found in two places.", "Remove one copy.", _CASE),
    "CASE_TOO_LARGE": CodeInfo(
        "The case needs more memory than this machine, its container, its worker or the device has.",
        "Choose a coarser --spacing, fewer --workers or, to predict, --device cpu; or run it on a larger machine.",
        _CASE,
    ),
    "SOURCE_TWICE": CodeInfo("The same files lie zipped and loose; the loose ones are used.", "Nothing to do.", 0),
    "REPAIRED": CodeInfo("The header is known to be wrong and was repaired from the catalogue.", "Nothing to do.", 0),
    "SOURCE_CHANGED": CodeInfo(
        "The case is published from other source bytes or settings.", "Pass --replace to rebuild it.", _CASE
    ),
    "SOURCE_MISSING": CodeInfo(
        "A source file is missing or cannot be opened.", "Check the path and permissions.", _CASE
    ),
    "MASK_MISSING": CodeInfo("The masks of the case are missing.", "Download the case again.", _CASE),
    "MASK_UNLISTED": CodeInfo(
        "A mask folder has a name that the catalogue does not list.",
        "It is not used. Add it to the catalogue and pass --catalog if it should be.",
        0,
    ),
    "MASK_DISPUTED": CodeInfo(
        "A mask that some users count as tumor is not hepatic and is not used.",
        "Use --catalog to decide otherwise.",
        0,
    ),
    "MASK_SHAPE": CodeInfo("A mask has another shape than its scan.", "Download the case again.", _CASE),
    "MASK_VALUE": CodeInfo("A mask holds values other than 0, 1 and 255.", "Download the case again.", _CASE),
    "MASK_GEOMETRY": CodeInfo("A mask lies elsewhere than its scan.", "Download the case again.", _CASE),
    "MASK_OUTSIDE_LIVER": CodeInfo(
        "Tumor voxels lie outside the liver mask; they are kept as tumor.", "Nothing to do.", 0
    ),
    "LABEL_UNKNOWN": CodeInfo(
        "A label image holds a value without a meaning (LiTS: other than 0, 1 and 2; own scans: not in label_map).",
        "Check the file, or the case's label_map.",
        _CASE,
    ),
    "LABEL_AFFINE": CodeInfo(
        "The label's affine differs from the scan's although the shapes agree; the scan's is used.",
        "Nothing to do.",
        0,
    ),
    "CATALOG_MISMATCH": CodeInfo(
        "The scan differs from what the catalogue says of it.",
        "Check that the folder holds the case it is named after.",
        _CASE,
    ),
    "ARCHIVE_BAD": CodeInfo("A zip is damaged or hostile.", "Download it again.", _CASE),
    "ARCHIVE_LIMIT": CodeInfo("A zip expands beyond the limits.", "Check where it comes from.", _CASE),
    "GZIP_CORRUPT": CodeInfo("A gzip stream is truncated or fails its CRC.", "Download the file again.", _CASE),
    "GZIP_LIMIT": CodeInfo(
        "A NIfTI expands beyond what its size on disk can account for, or goes on behind its voxels.",
        "Check where it comes from; save large label volumes as 8-bit integers.",
        _CASE,
    ),
    "NIFTI_HEADER": CodeInfo("The NIfTI header is unusable.", "Check the file.", _CASE),
    "NIFTI_SHORT": CodeInfo("The NIfTI holds fewer bytes than its header says.", "Download the file again.", _CASE),
    "NIFTI_AFFINE": CodeInfo(
        "The NIfTI affine is not finite, or sheared, or contradicts its spacing.", "Check the file.", _CASE
    ),
    "NIFTI_DIM": CodeInfo("The NIfTI is no 3-D volume or exceeds the limits.", "Check the file.", _CASE),
    "NIFTI_NO_AFFINE": CodeInfo(
        "The NIfTI sets neither sform nor qform; orientation is assumed.", "Check left and right.", 0
    ),
    "NIFTI_FORMS": CodeInfo(
        "The NIfTI sets sform and qform, and they differ; the sform is used, other programs may take the qform.",
        "Check left and right, and that labels drawn elsewhere fit.",
        0,
    ),
    "HU_RANGE": CodeInfo("Values do not fit int16 HU or are not finite.", "Check the rescale of the source.", _CASE),
    "LIVER_NOT_FOUND": CodeInfo(
        "The prediction of a scan holds no liver.",
        "See whether the scan shows the abdomen, in HU and the right way round (`livprep inspect`, `livprep preview`).",
        0,
    ),
    "HU_NO_AIR": CodeInfo("No air near -1000 HU: the values may not be HU.", "Look at the case before use.", 0),
    "HU_UNSHIFTED": CodeInfo(
        "Air and tissue lie about 1000 too high: the values look like stored ones without their intercept.",
        "Look at the case; convert it again with slope and intercept applied.",
        0,
    ),
    "HU_AIR": CodeInfo(
        "The peak of air is not near -1000 HU: offset or scale may be wrong.",
        "Look at the case; convert it again with slope and intercept applied.",
        0,
    ),
    "HU_TISSUE": CodeInfo(
        "No peak of fat or soft tissue lies where it does in HU: offset or scale may be wrong.",
        "Look at the case; convert it again with slope and intercept applied.",
        0,
    ),
    "HU_LIVER": CodeInfo(
        "The liver's most frequent value is none that a liver has, with or without contrast medium.",
        "Check that labels and scan belong together, and the rescale of the source.",
        0,
    ),
    "HU_STEP": CodeInfo(
        "All values are multiples of a step above 1 HU: fine differences were lost, or the slope is wrong.",
        "Use the original scan instead of a converted one.",
        0,
    ),
    "HU_PADDING": CodeInfo(
        "The corners of the slices are filled with a value that is not air; it is kept.",
        "Choose windows that saturate it; a filling of 0 looks like water.",
        0,
    ),
    "HU_CUT": CodeInfo(
        "Many voxels hold the highest value: the range of the scan was cut there.",
        "Use the original scan instead of a converted one.",
        0,
    ),
    "HU_HIGH": CodeInfo(
        "More voxels than metal explains have 3071 HU and more: the scale may be wrong.",
        "Look at the case; check the rescale of the source.",
        0,
    ),
    "HU_LIMIT": CodeInfo(
        "Voxels hold -32768 or 32767, the limits of 16 bits: marks or overflows of a converter, no HU.",
        "Look at the case; use the original scan instead of a converted one.",
        0,
    ),
    "ANATOMY_LEFT_RIGHT": CodeInfo(
        "The liver lies on the patient's left by the header: left and right may be exchanged.",
        "Look at the case before use; correct the source's header.",
        0,
    ),
    "ANATOMY_FRONT_BACK": CodeInfo(
        "The spine lies in front by the header: front and back may be exchanged.",
        "Look at the case before use; correct the source's header.",
        0,
    ),
    "ANATOMY_HEAD_FEET": CodeInfo(
        "The lungs lie below by the header: the scan may be upside down.",
        "Look at the case before use; correct the source's header.",
        0,
    ),
    "ANATOMY_AXES": CodeInfo(
        "The spine lies at one side by the header: two axes may be exchanged.",
        "Look at the case before use; correct the source's header.",
        0,
    ),
    "DICOM_UNREADABLE": CodeInfo("A file is no readable DICOM.", "Remove it or download it again.", _CASE),
    "DICOM_SYNTAX": CodeInfo(
        "The pixel data use a compression that no installed decoder reads.", "Install the codecs.", _CASE
    ),
    "DICOM_SEG": CodeInfo(
        "A scan cannot be referred to by a DICOM segmentation.",
        "Write NIfTI instead (--format nifti).",
        _CASE,
    ),
    "PIXELDATA_SHORT": CodeInfo("A slice holds fewer pixel bytes than its header says.", "Download it again.", _CASE),
    "PIXELDATA_MISSING": CodeInfo("A slice has no pixel data.", "Download it again.", _CASE),
    "PIXELDATA_BITS": CodeInfo("Stored and allocated bits contradict each other.", "Check the source.", _CASE),
    "PIXELDATA_CODEC": CodeInfo("The compressed pixel data of a slice are damaged.", "Download it again.", _CASE),
    "SERIES_TAG": CodeInfo("A slice lacks a tag that geometry or HU need.", "Check the source.", _CASE),
    "SERIES_MIXED": CodeInfo("The folder holds slices of more than one series.", "Keep one series a folder.", _CASE),
    "SERIES_SHAPE": CodeInfo("Slices of a series differ in rows or columns.", "Check the source.", _CASE),
    "SERIES_SPACING": CodeInfo("Slices of a series differ in pixel spacing.", "Check the source.", _CASE),
    "SERIES_ORIENTATION": CodeInfo("Slices of a series differ in orientation.", "Check the source.", _CASE),
    "SERIES_MODALITY": CodeInfo("A slice of the scan is of another modality than CT.", "Keep CT alone.", _CASE),
    "SERIES_FRAMES": CodeInfo(
        "A file of many frames does not say where each of them lies.", "Export the series again.", _CASE
    ),
    "SERIES_LIMIT": CodeInfo(
        "The pixels would take far more memory than the files can account for.",
        "Check where the files come from.",
        _CASE,
    ),
    "SERIES_FRAME_OF_REFERENCE": CodeInfo(
        "Slices of a series have different frames of reference: the patient moved between them.",
        "Keep slices of one frame of reference.",
        _CASE,
    ),
    "SERIES_TILT": CodeInfo(
        "Slice positions shear away from the slice normal (gantry tilt).", "Resample it upright first.", _CASE
    ),
    "SERIES_TILT_STATED": CodeInfo(
        "A gantry tilt is stated, but the slices lie straight; the positions are used.", "Look at the case.", 0
    ),
    "SERIES_SHIFT": CodeInfo("Single slices lie beside where the others put them.", "Check the source.", _CASE),
    "SERIES_GAP": CodeInfo("Slices are missing or unevenly spaced.", "Download the series again.", _CASE),
    "SERIES_RESCALE": CodeInfo(
        "A slice has another slope or intercept than the others, and leaps from its neighbors by it.",
        "Check the source.",
        _CASE,
    ),
    "SERIES_RESCALE_VARIES": CodeInfo(
        "Slope or intercept differ between slices; each slice is rescaled by its own.", "Nothing to do.", 0
    ),
    "SERIES_RESCALE_TYPE": CodeInfo(
        "RescaleType says that the values are another quantity than HU (effective atomic number, electron density, "
        "mg/ml and the like).",
        "Export the series of HU instead.",
        _CASE,
    ),
    "SERIES_RESCALE_UNIT": CodeInfo(
        "RescaleType leaves the unit open (US), or the values are modified HU (HU_MOD, virtual monoenergetic images); "
        "they are taken as HU.",
        "Look at what `livprep info CASE` says of air and liver.",
        0,
    ),
    "SERIES_NUMBERING": CodeInfo(
        "InstanceNumber does not follow the slices, whose positions are even.", "Nothing to do.", 0
    ),
    "SERIES_COUNT": CodeInfo(
        "The series has another number of slices than its header counts.", "Check that the series is whole.", 0
    ),
    "SERIES_LOCALIZER": CodeInfo("Localizers lie among the slices; they are not used.", "Nothing to do.", 0),
    "SERIES_PADDING": CodeInfo(
        "Voxels outside the field of view hold a padding value; it is kept.", "Choose windows that saturate it.", 0
    ),
    "SERIES_DUPLICATE": CodeInfo(
        "Two slices lie at one position.",
        "Remove the copy; of a series of several times or phases, give each a folder of its own.",
        _CASE,
    ),
    "SERIES_PHASES": CodeInfo(
        "A series holds several acquisitions or times at the same places; each is taken as a volume of its own.",
        "Choose the phase that is meant.",
        0,
    ),
    "SERIES_SPREAD": CodeInfo(
        "Slices of one series UID lie in several folders and form no even stack together; each folder is taken by "
        "itself.",
        "Nothing to do for copies; else bring all slices of the series together.",
        0,
    ),
    "SERIES_INCOMPLETE": CodeInfo("The series has fewer slices than it should.", "Download it again.", _CASE),
    "SERIES_UID_MISSING": CodeInfo("The series UID is empty; slices were grouped by folder.", "Nothing to do.", 0),
    "SERIES_THICKNESS": CodeInfo(
        "Slice thickness differs from the slice distance; the distance is used.", "Nothing to do.", 0
    ),
    "SERIES_LOSSY": CodeInfo(
        "The pixels were compressed with loss, or may have been: HU are not those of the scanner.",
        "Use the original series where there is one.",
        0,
    ),
    "SERIES_SOP_CLASS": CodeInfo("The SOP class is empty or unusual; Modality CT decided.", "Nothing to do.", 0),
    # running
    "DIVERGED": CodeInfo(
        "Training diverged (loss is not finite).",
        "Lower the learning rate; the last good checkpoint is kept.",
        70,
    ),
    "OUT_OF_MEMORY": CodeInfo(
        "Training needs more memory than the device has.",
        "Lower --set batch=1 (accumulate makes up for it) or patch_zyx, add --set activation_checkpointing=true, or "
        "--set loader_tier=ram where the cohort lies on the device; what else runs there counts too.",
        70,
    ),
    "DISK_FULL": CodeInfo("The disk is full.", "Free space and run again; published cases are safe.", 74),
    "SCHEDULER_UNUSABLE": CodeInfo(
        "No Dask scheduler answers at the address of --scheduler, or its workers have another livprep.",
        "Check the address (the scheduler's, not the dashboard's) and that scheduler and workers run where livprep is "
        "installed; tls:// takes Dask's own credentials: distributed.comm.tls, or "
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, __CLIENT__CERT and __CLIENT__KEY.",
        74,
    ),
    "IO": CodeInfo("Reading or writing failed.", "Check the disk and run again; published cases are safe.", 74),
    "INTERRUPTED": CodeInfo("Stopped by USR1 or USR2.", "Run the same command again (fit: with --resume).", 75),
    "WORKER_LOST": CodeInfo(
        "The case killed its worker process twice and is set aside.",
        "Ingest it alone with --workers 1.",
        _CASE,
    ),
    "INTERNAL": CodeInfo(
        "A defect of livprep or livtrain.",
        "Run again with -v for its place and report it; LIVPREP_DEBUG=1 shows its text too, which may quote headers.",
        1,
    ),
}


def trace(error: BaseException) -> str:
    """Where an error came from, with its type and without its text, which may quote a patient's header."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


class LivError(Exception):
    """Root of all errors of livprep and livtrain.

    Parameters
    ----------
    code
        A key of `CODES`.
    message
        One line: subject, what was found, what was expected with its unit, what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message

    @property
    def exit_code(self) -> int:
        """Exit code of a command that ends with this error (commands.md)."""
        return CODES[self.code].exit_code


class UsageError(LivError, ValueError):
    """A request that cannot be carried out as asked."""


class GeometryError(LivError, ValueError):
    """Two grids that must be one are not, or a grid is impossible."""

    def __init__(self, message: str, code: str = "GEOMETRY") -> None:
        super().__init__(code, message)

    def __reduce__(self) -> tuple[type[GeometryError], tuple[str, str]]:
        return (type(self), (self.message, self.code))


class SourceError(LivError, ValueError):
    """A fault of a source file or series; it rejects its case, never the batch."""


class StoreError(LivError, OSError):
    """A store is missing, unreadable, damaged or of another preparation."""

    def __init__(self, code: str, message: str) -> None:
        LivError.__init__(self, code, message)


class CatalogError(LivError, ValueError):
    """The catalogue does not parse."""


class RunError(LivError, RuntimeError):
    """A training run cannot start, continue or finish."""
