"""The table of codes: a stable identifier for each kind of error and each kind of finding of `vesalius check`.

Codes are public: `--json` prints them, reports store them, and scripts may compare them. Messages may change.
`python -m vesalius.codes > docs/errors.md` writes the table as a page, `python -m vesalius.codes zh > docs/zh/errors.md` the
Chinese one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Code:
    """Severity, meaning and remedy of one code."""

    severity: Severity
    meaning: str
    remedy: str


_TABLE = """
# files and images
not_found: a file or folder does not exist | correct the path
not_local: a URL is given as a path | download the file and give its path
unreadable_file: a file or folder cannot be opened or parsed | check its permissions and format (JSON must be UTF-8)
unknown_format: a file or folder has no supported dataset format | convert it to a supported format
ambiguous_split: a folder has several annotation files | pick one with --split, or name the file
unreadable_image: an image cannot be read: empty, truncated, damaged, or not an image | copy it again from its source, or save it as PNG
image_too_large: an image, volume or video has more pixels, slices or frames than allowed | split it into smaller files
multi_frame_file: a file has several frames and no frame number is given | give a frame number, or pass the file to predict or import
not_finite_pixels: an image has pixels that are NaN or infinite | replace them by numbers, such as the background's value
transparent_image: an image is partly transparent | flatten it onto a background and save it without alpha
unsupported_video: a video has frames without distinct times, or not exactly one video stream | convert it to MP4
unsupported_volume: a volume has an unsupported voxel type or number of dimensions | save it with real or RGB24 voxels and 2 or 3 dimensions
missing_image: an entry names an image that does not exist | add the image, or correct or remove the entry
ambiguous_image: an entry names an image that matches several files | rename all but one
outside_path: an entry names an image outside the dataset's folder | move the image into the folder and give a path relative to the annotation file
no_image: an annotation file lists no image, a folder contains none, or a prediction keeps none | export it again, or give an image
unpaired_file: an image has no mask file of the same name, or a mask file no image | add the missing file, or remove this one
duplicate_id: two images or entries have the same id | write all objects of an image into one entry, and use image names that differ in more than the suffix
case_count_mismatch: the stated number of cases differs from the number of files | copy the missing cases, or correct the number
unsupported_file_type: a file has an unsupported type | convert it to an image, a NIfTI volume or MP4
separate_channels: the channels of an image are separate files | save them as one image
# DICOM
not_dicom: a file is not a DICOM file | export it again, or remove it
damaged_file: a file cannot be parsed | copy it again from its source
truncated_file: the pixel data of a file is incomplete | copy it again from its source
no_pixel_data: a file has no image | remove it
missing_tag: a DICOM file lacks a tag that is required for display | export it again
duplicate_instance: two DICOM files hold the same image | remove one of them
header_mismatch: the header of a DICOM file disagrees with its pixel data | export it again
frame_count_mismatch: the stated and actual number of frames differ, or the requested frame does not exist | give a frame number that exists (from 0), or export the file again
invalid_bit_depth: an image, video or DICOM file has an unsupported bit depth or pixel type | save it with 8 or 16 bits per channel, or as 32-bit float TIFF without compression
invalid_window: the display window of a DICOM file is unusable | export it again
invalid_lut: a lookup table of a DICOM file is unusable | export it again
unsupported_color_model: an image has an unsupported color mode or photometric interpretation | save it as grayscale or RGB
unsupported_transfer_syntax: a DICOM file has an unsupported transfer syntax | export it uncompressed
undecodable_pixels: the compressed pixels of a DICOM file cannot be decoded | export it uncompressed
unsupported_segmentation: a file is not a DICOM segmentation, or not a binary one | export it as a binary segmentation
# entries of annotation files
invalid_annotation: an entry or a mask violates its annotation format | correct it as the message says
missing_field: an entry lacks a required field | add it, or export it again
unreadable_mask: a mask in an annotation file cannot be decoded | export it again or draw it again
unknown_id: an annotation refers to an image or category id that is not listed | export it again
invalid_labels: labels are not integers, or have no phrase | correct the labels that the message names
invalid_class_table: the class table lacks a phrase or a value for a class | correct the table
ambiguous_annotation: an image has several annotations and none is marked as valid | mark one as ground truth, or cancel the others
rotated_annotation: masks were drawn on a rotated view of the image | rotate the image file, or draw the masks again
track_gap: a track does not cover all frames | export all frames, not only key frames
not_labelme: a JSON file in a LabelMe folder is not a LabelMe file | move it elsewhere
phrase_count_mismatch: the numbers of phrases and masks of an entry differ | give one phrase for each object
no_phrase: an object has no phrase | give it a phrase; use null as its mask if the object is not in the image
unlabeled_image: an image has no annotation, so it cannot be used for training or scoring | annotate it, or remove it from the annotation file
dataset_errors: a dataset has errors that vesalius check lists | correct them, by hand or with vesalius check --fix
nothing_kept: check --fix would drop all images of a dataset or split | correct the listed errors by hand
pseudonym_collision: two names have the same pseudonym | import again with a new key
exposed_key: a key file is readable by other users | run chmod 600 on it
invalid_key: a file is not a key file of vesalius import | name the .key.json next to the imported dataset
reserved_key: a metadata key equals a key of the annotation format | rename the metadata key
# masks
size_mismatch: masks were drawn on a copy of another size | scale coordinates and masks by the ratio of the sizes, or use the image that was annotated
outside_image: coordinates lie more than a pixel outside the image | check whether the object was drawn on a copy of another size; scale the coordinates, or draw it again
invalid_points: the points of a shape are not pairs of numbers | draw it again or remove it
too_few_points: a polygon has fewer than 3 points, or an odd number of coordinates | draw it again or remove it
not_finite: a polygon has a coordinate that is NaN or infinite | draw it again or remove it
zero_area: all points of a polygon lie on one line, so it covers no pixel | draw it again or remove it
no_area: a shape is a point or a line, so it has no area | draw a polygon, or remove it
unknown_shape: a shape has an unknown type | draw it as a polygon
invalid_rle: an RLE does not describe a mask of its size | encode the mask again
ambiguous_mask: a mask file has several colors, or a palette whose first color is not black | save it as 8-bit grayscale with 0 for background
unknown_mask_value: a mask file has a value that belongs to no class | add it to the class table, or draw the mask again
empty_object: an object is an empty list | use null if the object is not in the image
no_mask: an annotation has no mask, or only a bounding box | draw its mask or remove it
empty_mask: a mask has no pixels | draw it, or use null if the object is not in the image
border_overshoot (warning): coordinates lie up to one pixel outside the image; the mask is clipped to the image | no action is needed, unless the object was drawn on a copy of another size
self_intersection (warning): the outline of a polygon crosses itself; areas enclosed twice count as outside (even-odd rule) | inspect the polygon, and draw it again if the mask has unwanted holes or tails
overlapping_objects (warning): two objects of an image overlap by more than 1 % of the smaller one | assign each pixel to one object, unless the structures really overlap
mixed_nesting (warning): some objects are one flat list of coordinates, others a list of such lists | write all objects as lists of polygons
lossy_mask (warning): a mask is stored as JPEG, which blurs its edges | save masks as PNG, from the lossless source if it still exists
gray_mask (warning): a mask file has more than two values; every value above 0 counts as the object | save it with two values, 0 for background; save each object as a separate mask
thin_structures (warning): more than 10 % of the skeleton pixels of the masks lie where the mask is thinner than one cell of the model's mask grid | use tiles or a larger input size
# phrases and groups
repeated_phrase (warning): an image has several objects with the same phrase; their union is the target | use different phrases if each object should be segmented separately
no_groups (warning): images have no patient or sequence, so each is its own group | give a field or regular expression with --group, so that the frames of one patient stay in one split
invalid_group: --group is neither an annotation field nor a regular expression with a capture group | give an annotation field, `folder`, a DICOM attribute, or a regular expression with a capture group
missing_group: the field or expression of --group yields no group for an image | give another field or a more general expression
# orientation, duplicates and names of images
exif_rotation (warning): an image has an EXIF orientation and is read upright, but nothing states whether its masks were drawn on the upright image | look at the masks, and save the image upright if they fit the stored one
constant_image (warning): all pixels of an image have the same color | remove it, or check how it was exported
few_gray_levels (warning): an image of more than 8 bits shows fewer than 16 gray levels | give the range of its values with --window, or remove it
float_range (warning): an image of floats has values outside 0 to 1, so its lowest value is shown as black and its highest as white | give the same range to all images with --window, if they share a scale
clipped_values (warning): more than half of the values of an image are outside the window that was given | give a window that fits the values, or auto
alpha_channel (warning): an image has an alpha channel but is fully opaque | save it without alpha
duplicate_image (warning): images of one split have the same pixels | keep the one with the better mask
near_duplicate (warning): images of one split look almost the same | look at them: keep one, or give them the same group if they are frames of one patient
unlisted_image (warning): images lie in the same folder as annotated ones, but no entry names them | add entries for them, or move them elsewhere
personal_name (warning): a file name or DICOM tag contains what looks like a person's name, birth date or record number | rename the files, or import them with vesalius import --pseudonymize
# splits
too_few_groups: a dataset has fewer groups than requested splits or folds | request fewer splits or folds
image_leak: two splits contain the same image or near duplicates | keep it in one split, or split again by patient with vesalius split
group_leak: two splits contain images of the same patient or sequence | split again by patient with vesalius split
# settings, arguments, output
wrong_usage: a command, an option or an argument is unknown, missing, of the wrong kind, or requires another one | correct the command as the message says; --help lists all options
malformed_change: a --set option is not of the form name=value | write it as name=value
not_yaml: a settings file or a value of --set is not valid YAML, or a key is given twice | correct the YAML
not_replaceable: the output folder contains files that do not belong to an earlier result | name another folder
folder_in_use: another process is writing to the same folder | wait until the other process ends
unexpected: an unexpected exception, probably a bug | run it again with -v and report the traceback
bad_value: a setting, an argument or a field of a file has a value that is not allowed | use a value that the message allows
unknown_setting: a setting has an unknown name | use the name that the message suggests, or remove the setting
conflicting_settings: two settings or arguments exclude each other | remove one of them
output_exists: the output already exists | choose another path, or remove the existing output
output_inside_data: the output lies inside the input data | choose a path outside the data
nothing_to_write: no sample or frame to write | give at least one
invalid_file_name: an id cannot be a file name | rename the image
write_failed: a file cannot be written | free disk space or check the permissions of the folder
missing_extra: an optional library is not installed | install the extra that the message names
interrupted: a signal ended the job; finished work is saved | run the same command again to continue
# models
no_weights: a model folder has no weight files | copy the model again, or name another folder
damaged_weights: a weight file is not in the safetensors format, or is truncated or damaged | copy the file again
unknown_dtype: a tensor has a dtype that is not supported | convert the model to float32, float16 or bfloat16
repeated_tensor: two weight files contain the same tensor | remove one of the files
shard_index_mismatch: the shard index of a model disagrees with its weight files | copy the model again
wrong_shape: an array or tensor has an unexpected shape | use the shape in the message
no_model: no model was found at a path or under a name | name a bundle, run, Sa2VA folder, hub id or tiny
not_downloaded: the weights of a published model are not on this machine | download them with hf download
unknown_model: a model name is not known | use the known name that the message suggests
incomplete_model: a file or folder of a bundle is missing | copy or convert the model again
damaged_model: a file of a model cannot be read or is damaged | copy the model again
invalid_card: a model card is missing, damaged or of an unknown kind | copy or convert the model again
weights_mismatch: weights are missing, unexpected or of the wrong shape for a configuration | copy or convert the model again
no_tokenizer: a model has no tokenizer, or its tokenizer lacks a token | copy the model again
invalid_adapter: an adapter is damaged or not a plain LoRA | merge it with its own library
adapter_mismatch: an adapter is incompatible with the model or the settings | merge the adapter first, or change the settings
unknown_layer: a model has no layer of the given name | use a name from the message
unsafe_link: a symbolic link in a model folder points outside it, or to a folder | copy the file itself
unsupported_quantization: a model cannot be opened or saved with the given quantization | remove the quantization option, or convert the model
invalid_device_map: a device map splits modules that must be on one device | create one with vesalius plan
invalid_prompt: a prompt is empty, not text, or contains a control token | write the phrase without control tokens
no_prompt: no image, prompt or object is given | give an image and a prompt
context_too_long: a prompt is longer than the model's context | shorten the prompt or lower max_tiles
unknown_family: the vision-language model belongs to no supported family | name a model of a supported family
invalid_model_config: a model configuration is damaged, incomplete or unsupported | copy or convert the model again
extreme_aspect_ratio: an image is too long and narrow for a model | cut it, or use tiles
wrong_model_kind: the command requires another kind of model | name a model of the kind in the message
unfinished_folds: a fold of an ensemble has no checkpoint yet | continue training with the command that began it
# conversion
not_a_checkpoint: a file or folder is not a training checkpoint, or has no state dict | name the .pth file that training wrote
unsafe_pickle: a training checkpoint would execute code when it is loaded; nothing was executed | get a tensor-only file from a source you trust
invalid_tensor: an entry of a state dict is not a dense CPU tensor | save the checkpoint again as plain tensors
invalid_lora: the LoRA of a checkpoint is incomplete, or has wrong shapes or several ranks | save the checkpoint again
unknown_tensor: a checkpoint has tensors that no Sa2VA model has | name a checkpoint of Sa2VA training
unknown_lora_alpha: neither the training configuration nor an argument gives the LoRA alpha | give it with --lora-alpha
missing_base: a conversion needs another model as its base | name it with --base
wrong_base: a base model or its configuration does not fit the weights | name the initial model of the training
unsupported_adapter: a LoRA changes weights outside the vision-language model | merge it (without --keep-adapter)
parity_failed: source and result of a conversion give different outputs | check the configuration of the source
verification_failed: the files that a conversion wrote differ from the source | check the disk and convert again
no_space: a disk has too little free space for a result | free some space or choose another disk
# prediction and memory planning
invalid_point: a click is not ((x, y), True or False), is not finite, lies outside the image, or contradicts another | give points in pixels of the image
not_supported: a model does not support a requested option | use a text-prompted model, or remove the option
no_device: a device does not exist on this machine | name cpu, cuda or cuda:1
does_not_fit: a model does not fit the memory of the given devices | apply one of the changes in the message
different_request: the output folder holds predictions, finished or not, with other settings | choose another folder, repeat its command, or add --overwrite
process_killed: a worker process was killed, perhaps by the out-of-memory killer | repeat the command to continue
no_tta_gain: no gain of test-time augmentation was measured for the model | run vesalius tune with --tta, or remove --tta
side_in_phrase: a phrase names a side, which a horizontal flip would swap | remove the view `flip` or --tta
not_a_cache: a cache folder contains other files, or overlaps the output folder | name another folder
unknown_phrase: a prompt is none of the phrases that the model was trained on (U-Nets, and --strict-phrases) | use one of the phrases of the model's card, or fine-tune the model
# training
no_run: a folder contains no run, or is a checkpoint inside a run | name the folder with config.yaml and log.jsonl
no_checkpoint: a run has no checkpoint to resume from | start it anew with the command that began it, or continue from the best checkpoint
damaged_checkpoint: a training checkpoint, its state or its links are truncated or damaged | copy it again (a run with cp -a), or continue from the best checkpoint as the message says
damaged_log: a log has a line that is not a JSON object with a step | correct or remove the line
no_folds: a folder has no folds for a cross-validation | make them with vesalius split --folds
changed_setting: a setting that must not change differs when a run is resumed or started anew | restore it, or start a new run
changed_data: the training data changed before a run was resumed | restore them, or start a new run from the checkpoint
no_examples: a task has a weight above 0 but no training example | set its weight to 0, or add data
nothing_to_learn: no training sample has a mask | annotate masks
no_gradient: a trainable component receives no gradient | check the weights in `loss` and the setting `trainable`
unchanged_weights: the weights of a trainable component do not change | raise optim.lr, or use precision: fp32
unchanged_predictions: two validations give identical predictions although training steps lie between them | check trainable, optim.lr and precision
not_finite_loss: the loss or the gradient became NaN or infinite | look at the images that the message names, or lower optim.lr
not_finite_weights: weights are NaN or infinite | use an earlier checkpoint, or start a new run with a lower optim.lr
out_of_memory: the largest training step does not fit in memory | lower batch_size, use a smaller trainable preset, or use gradient checkpointing
inseparable_phrases: the language model gives all phrases the same hidden state at [SEG] | train the language model too
missing_process: some of the launched processes did not join the run | start them with torchrun or accelerate launch
unsupported_launch: a launch configuration requests a strategy other than DDP or FSDP2 | use a configuration of recipes/accelerate
# evaluation and comparison
training_leak: images to be scored, or tuned on, are among the training images of the model | use images that the model has not seen, or add --allow-training-samples to evaluate
tuning_leak: images to be scored are among those on which the threshold was tuned | evaluate on other images
copied_ground_truth: most predictions are pixel-identical to the ground truth | score other predictions, or use ground truth that this model did not generate
duplicate_prompt: a sample has the same prompt twice | remove one of them
no_samples: no sample to evaluate or tune on | name a dataset or split with samples
missing_roi: an image has no region-of-interest mask | add a mask file with the id of the image as its name
empty_roi: a region-of-interest mask has no pixels | draw the region, or remove the image
missing_prediction: a prediction folder has no prediction for a sample and prompt | predict the missing ones
invalid_prediction: predictions.jsonl, run.json or a prediction file is damaged or was not written by predict | predict again
mixed_models: a prediction folder contains predictions of several models | evaluate each model by itself
missing_probabilities: changing the threshold requires stored probabilities | predict again with --save probs, or remove the threshold option
prediction_failed: a prediction failed, so there is no mask to save, show or tune on | correct or remove the sample
unknown_metric: a metric is unknown or not available | choose one that the message names
invalid_results: metrics.json or samples.jsonl is truncated or was not written by evaluate | evaluate again
different_samples: evaluations differ in samples, prompts, groups or data | evaluate the same dataset with the same settings
nothing_to_compare: no metric or row has a score in all evaluations | evaluate again, or compare other evaluations
"""
"""Each line is `CODE: MEANING | REMEDY`, or `CODE (warning): MEANING | REMEDY`; a line with # is a section title."""


CHINESE_TABLE = Path(__file__).with_name("codes.zh.txt")
"""The same lines in Chinese."""


def _read_table(table: str) -> dict[str, Code]:
    codes: dict[str, Code] = {}
    for line in table.strip().splitlines():
        if line.startswith("# "):
            continue
        name, _, text = line.partition(": ")
        meaning, _, remedy = text.partition(" | ")
        code = name.removesuffix(" (warning)")
        assert code not in codes, code
        codes[code] = Code("error" if code == name else "warning", meaning, remedy)
    return codes


CODES = _read_table(_TABLE)
"""All codes of errors and findings, in the order of docs/errors.md."""


@lru_cache
def chinese_codes() -> dict[str, Code]:
    """All codes with their meanings and remedies in Chinese."""
    return _read_table(CHINESE_TABLE.read_text(encoding="utf-8"))


def as_markdown() -> str:
    """The table as Markdown, for docs/errors.md."""
    head = """# Codes of errors and findings

Every error has a code, and so has every finding of `vesalius check`. Codes are stable; messages may change.
`--json` prints an error as `{"error": {"code", "message", "path", "field"}}`, with null for an unknown path or field."""
    return _page(head, _TABLE, "| code | severity | meaning | remedy |", {"error": "error", "warning": "warning"})


def as_chinese_markdown() -> str:
    """The table in Chinese as Markdown, for docs/zh/errors.md."""
    head = """# 错误与问题的代码

错误信息是英文的，每个错误都有代码，`vesalius check` 发现的每个问题也有代码。在本页查找代码，即可看到中文的含义和处理办法。代码保持不变，错误信息的措辞可能改变。
`--json` 把错误输出为 `{"error": {"code", "message", "path", "field"}}`；路径或字段未知时为 null。英文页：[errors.md](../errors.md)。"""
    table = CHINESE_TABLE.read_text(encoding="utf-8")
    return _page(head, table, "| 代码 | 程度 | 含义 | 处理办法 |", {"error": "错误", "warning": "警告"})


def _page(head: str, table: str, columns: str, severities: dict[str, str]) -> str:
    lines = [head]
    codes = _read_table(table)
    for line in table.strip().splitlines():
        if line.startswith("# "):
            lines += ["", f"## {line[2].upper()}{line[3:]}", "", columns, "|---|---|---|---|"]
        else:
            code = line.partition(": ")[0].removesuffix(" (warning)")
            entry = codes[code]
            lines.append(f"| `{code}` | {severities[entry.severity]} | {entry.meaning} | {entry.remedy} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(as_chinese_markdown() if sys.argv[1:] == ["zh"] else as_markdown(), end="")
