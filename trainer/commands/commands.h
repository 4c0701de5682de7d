// The commands: their options, and the functions that run them, one file each. A new command is its
// options here, its file, and a line in commands.cpp. MODEL is a run folder, a checkpoint folder or
// a Hugging Face folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/import.h"
#include "trainer/command_line.h"

namespace sluice {

// Of the commands that read a configuration.
struct ConfigArguments {
  std::string config;
  std::vector<std::string> overrides;
  void declare(OptionList& o) {
    o.positional("CONFIG", config, "YAML file");
    o.rest("OVERRIDES", overrides, "dotted.key=value, over the file");
  }
};

struct TrainOptions : ConfigArguments {
  std::string run;              // folder; empty: runs/<name>
  std::string resume = "auto";  // auto, never, or a path
  void declare(OptionList& o) {
    ConfigArguments::declare(o);
    o.value("--run", run, "run folder, instead of runs/<name>");
    o.value("--resume", resume, "auto: the newest good checkpoint of the run; never; or a path");
  }
};
int run_train(const TrainOptions& options);

struct PlanOptions : ConfigArguments {
  int64_t world = 1;
  bool json = false;
  void declare(OptionList& o) {
    ConfigArguments::declare(o);
    o.value("--world", world, "ranks", 1);
    o.flag("--json", json, "print JSON");
  }
};
int run_plan(const PlanOptions& options);

struct VerifyOptions : ConfigArguments {
  bool json = false;
  void declare(OptionList& o) {
    ConfigArguments::declare(o);
    o.flag("--json", json, "print JSON");
  }
};
int run_verify(const VerifyOptions& options);

struct ScoreOptions {
  std::string model;
  std::string tokens;
  std::string logits;
  std::string grads;
  std::string device = "auto";
  bool bf16 = false;
  bool json = false;
  void declare(OptionList& o) {
    o.positional("MODEL", model, "run, checkpoint or Hugging Face folder");
    o.value("--tokens", tokens, "rows: a JSON file [[ids], ...] or a token store", true);
    o.value("--logits", logits, "HDF5 file to write the logits to");
    o.value("--grads", grads, "HDF5 file to write the gradients to");
    o.value("--device", device, "auto: a GPU where there is one; cpu; cuda");
    o.flag("--bf16", bf16, "compute in bf16, on a GPU");
    o.flag("--json", json, "print JSON");
  }
};
int run_score(const ScoreOptions& options);

struct EvalOptions {
  std::string model;
  std::string data;
  std::string ngram;
  int64_t seq_len = 0;
  int64_t rows = 0;
  int64_t batch = 4;
  std::string device = "auto";
  bool bf16 = false;
  bool json = false;
  void declare(OptionList& o) {
    o.positional("MODEL", model, "run, checkpoint or Hugging Face folder");
    o.value("--data", data, "held-out token store", true);
    o.value("--ngram", ngram, "training store of a byte 3-gram model to compare with");
    o.value("--seq-len", seq_len, "tokens of a row; 0: as trained", 0);
    o.value("--rows", rows, "rows to evaluate; 0: all", 0);
    o.value("--batch", batch, "rows of a forward pass", 1);
    o.value("--device", device, "auto: a GPU where there is one; cpu; cuda");
    o.flag("--bf16", bf16, "compute in bf16, on a GPU");
    o.flag("--json", json, "print JSON");
  }
};
int run_eval(const EvalOptions& options);

struct GenerateOptions {
  std::string model;
  std::string prompt;
  int64_t tokens = 200;
  int64_t seed = 1;
  double temperature = 1;
  int64_t top_k = 0;
  std::string device = "auto";
  bool json = false;
  void declare(OptionList& o) {
    o.positional("MODEL", model, "run, checkpoint or Hugging Face folder");
    o.value("--prompt", prompt, "text to go on from", true);
    o.value("--tokens", tokens, "tokens to make", 0);
    o.value("--seed", seed, "of the sampling", 0);
    o.value("--temperature", temperature, "0: the likeliest token", 0, 1000);
    o.value("--top-k", top_k, "sample among this many; 0: all", 0);
    o.value("--device", device, "auto: a GPU where there is one; cpu; cuda");
    o.flag("--json", json, "print JSON");
  }
};
int run_generate(const GenerateOptions& options);

struct ImportOptions {
  std::string folder;
  std::string output;
  void declare(OptionList& o) {
    o.positional("HF_DIR", folder, "Hugging Face folder");
    o.positional("OUT", output, "folder to write the checkpoint to");
  }
};
int run_import(const ImportOptions& options);

struct ConfigPrintOptions : ConfigArguments {
  bool json = false;
  void declare(OptionList& o) {
    ConfigArguments::declare(o);
    o.flag("--json", json, "print JSON: values, and the origin of each key");
  }
};
int run_config_print(const ConfigPrintOptions& options);

struct ConfigSchemaOptions {
  std::string config;
  void declare(OptionList& o) {
    o.optional_positional("CONFIG", config, "not needed: the schema is the same for all");
  }
};
int run_config_schema(const ConfigSchemaOptions& options);

struct DataBuildOptions {
  BuildOptions build;
  bool json = false;
  void declare(OptionList& o) {
    o.rest("INPUT", build.inputs, "text files, .jsonl files, folders", true);
    o.value("--out", build.output, "token store to write", true);
    o.value("--valid", build.valid_output, "held-out token store to write");
    o.value("--valid-fraction", build.valid_fraction, "share of the documents held out", 0, 0.9);
    o.value("--tokenizer", build.tokenizer, "byte");
    o.value("--field", build.jsonl_field, "key of the text in jsonl");
    o.values("--suffix", build.suffixes, "of files taken from folders; repeatable");
    o.value("--split", build.split_documents, "bytes above which documents are cut; 0: never", 0);
    o.flag("--json", json, "print JSON");
  }
};
int run_data_build(const DataBuildOptions& options);

struct DataInspectOptions {
  std::string store;
  int64_t samples = 3;
  int64_t tokens = 200;
  bool json = false;
  void declare(OptionList& o) {
    o.positional("STORE", store, "token store");
    o.value("--samples", samples, "documents to show", 0);
    o.value("--tokens", tokens, "tokens of each to show", 1);
    o.flag("--json", json, "print JSON");
  }
};
int run_data_inspect(const DataInspectOptions& options);

// All of them, in the order of the help text.
std::vector<Command> commands();

}  // namespace sluice
