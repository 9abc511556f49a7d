"""Each row of the guide's table of checkpoints is a test."""

import importlib

import pytest

from tests.support.guides import read

HERE = "tests.convert.source.saved"
ROWS = {
    "`save_pretrained`:": "tests.convert.source.test_checkpoint.test_the_weights_are_those_that_transformers_reads",
    "`torch.save(model.state_dict())`": f"{HERE}.test_weights.test_the_state_dict_of_a_model_in_memory",
    "The same in shards": f"{HERE}.test_weights.test_the_same_in_shards",
    "A state dict inside": f"{HERE}.test_weights.test_a_state_dict_among_what_else_a_training_saves",
    "Under another name": f"{HERE}.test_weights.test_a_file_of_another_name_where_it_is_the_only_one",
    "A Trainer's checkpoint": f"{HERE}.test_weights.test_of_a_trainers_checkpoint_only_the_weights_are_read",
    "A single file beside": f"{HERE}.test_weights.test_a_single_file_goes_before_an_index_that_was_left_behind",
    "`vocab.json`": f"{HERE}.test_tokenizers.test_vocab_json_and_merges_txt_give_what_tokenizer_json_gives",
    "Without a tokenizer": f"{HERE}.test_tokenizers.test_the_tokenizer_of_another_folder",
    "With tokens added": f"{HERE}.test_tokenizers.test_a_special_token_without_a_row_is_left_out_and_said_so",
    "With several end tokens": f"{HERE}.test_settings.test_all_end_tokens_end_an_answer",
    "With `null`": f"{HERE}.test_settings.test_the_tokenizer_names_the_end_where_both_configs_are_silent",
    "`config.json` of any": f"{HERE}.test_settings.test_every_form_of_config_json_is_read_as_transformers_reads_it",
    "An adapter alone": f"{HERE}.test_other_forms.test_an_adapter_alone",
    "A model with an adapter": f"{HERE}.test_weights.test_an_adapter_that_was_not_merged_is_named",
    "DeepSpeed's or FSDP's": f"{HERE}.test_other_forms.test_shards_of_a_training_that_were_not_put_together",
    "The GPT-NeoX library's": f"{HERE}.test_other_forms.test_shards_of_a_training_that_were_not_put_together",
    "A training's folder": f"{HERE}.test_other_forms.test_the_folder_of_a_training_with_its_checkpoints",
    "Weights without": f"{HERE}.test_weights.test_weights_without_a_config_json_are_said_to_be_that",
    "Quantized by": f"{HERE}.test_other_forms.test_weights_that_are_quantized_already",
    "With a SentencePiece": f"{HERE}.test_tokenizers.test_a_sentencepiece_model_is_refused_as_what_it_is",
    "Pointer files": f"{HERE}.test_weights.test_a_pointer_of_git_lfs_is_said_to_be_one",
}
"""The test of each row, by how the row begins; in the table's order."""


def test_every_row_of_the_table_is_here() -> None:
    table = read("docs/converting.md").partition("| How it was saved | What happens |\n")[2].partition("\n\n")[0]
    rows = [row.removeprefix("| ") for row in table.splitlines()[1:]]
    assert len(rows) == len(ROWS)
    for row, beginning in zip(rows, ROWS, strict=True):
        assert row.startswith(beginning)


@pytest.mark.parametrize("test", dict.fromkeys(ROWS.values()))
def test_every_test_named_here_is_there(test: str) -> None:
    module, _, name = test.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
