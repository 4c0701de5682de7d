#include "trainer/training_run.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>

#include "kernels/core/device_name.h"
#include "kernels/core/dispatch.h"
#include "kernels/core/threads.h"
#include "kernels/gemm/gemm.h"
#include "trainer/checkpoint/config_lock.h"
#include "trainer/checkpoint/folders.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/engine_state.h"
#include "trainer/environment.h"
#include "trainer/error_report.h"
#include "trainer/model_source.h"
#include "trainer/plan.h"
#include "trainer/runtime_info.h"
#include "trainer/same_program.h"
#include "trainer/version.h"

namespace sluice {

namespace {

// A checkpoint folder itself, or the folder of a run's checkpoints.
bool is_checkpoint(const std::string& path) { return exists(path + "/" + kManifestName); }

}  // namespace

TrainingRun::TrainingRun(const Config& config, const RunOptions& options, World& world, Mesh& mesh,
                         const Place& place)
    : config_(config),
      options_(options),
      world_(world),
      mesh_(mesh),
      place_(place),
      peers_(*world.comm) {
  run_id_ = make_run_id();
  agree(peers_, [&] { open_folder(); });
  agree(peers_, [&] { make_trainer(); });
  CheckpointWriterOptions checkpointing;
  checkpointing.folder = checkpoints();
  checkpointing.run_id = run_id_;
  writer_ = std::make_unique<CheckpointWriter>(std::move(checkpointing), peers_);
  const bool resumed = resume();
  if (!resumed && !config_.model.init_from.empty()) {
    agree(peers_, [&] { initialise_from(config_.model.init_from); });
  }
  peak_flops_ = reduce_value(*world_.comm, measure_peak_flops(), ReduceOp::sum);
  agree(peers_, [&] { open_logs(); });
}

TrainingRun::~TrainingRun() = default;

// Of this process tree, equal on all ranks: rank 0's clock and process id.
std::string TrainingRun::make_run_id() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const int64_t seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  return peers_.all_gather(fmt::format("{:x}-{:x}", seconds, getpid()))[0];
}

// On a GPU the engine allocates all that steps use, so the difference in free memory is what the
// plan should say.
void TrainingRun::make_trainer() {
  if (place_.device.is_cpu()) {
    trainer_ = std::make_unique<Trainer>(config_, mesh_, place_);
    return;
  }
  const Plan plan = require_memory(config_, peers_.size(), place_.device);
  const size_t free = free_memory_of(place_.device);
  trainer_ = std::make_unique<Trainer>(config_, mesh_, place_);
  const size_t taken = free - free_memory_of(place_.device);
  reproducible_note_ = plan.reproducible;
  memory_note_ =
      fmt::format("memory: plan {:.2f} GiB, device {:.2f} GiB",
                  double(plan.memory()) / double(1 << 30), double(taken) / double(1 << 30));
}

void TrainingRun::open_folder() {
  if (!is_main()) return;
  folder_ = std::make_unique<RunFolder>(options_.folder);
  // A launcher puts a terminal of its own between the ranks and wherever their output goes.
  const TerminalStyle style = launcher_rank().empty() ? style_of(stdout) : TerminalStyle{};
  progress_ = std::make_unique<Progress>(stdout, style, config_.train.steps, config_.log.every);
  if (options_.resume == "never" && !list_steps(checkpoints()).empty()) {
    throw UsageError(
        fmt::format("{} holds checkpoints and --resume is never: give another --run, or resume",
                    options_.folder));
  }
  probe_folder(checkpoints());
  for (const std::string& problem : remove_leftovers(checkpoints()).problems) note(problem);
  pruner_ = std::make_unique<CheckpointPruner>(checkpoints(), run_id_, config_.checkpoint.keep);
}

void TrainingRun::open_logs() {
  if (!is_main()) return;
  const bool finished = last_step();
  if (finished) return;  // a finished run stays as it is
  const Warn warn = [this](const std::string& message) { note(message); };
  truncate_metrics(folder_->file("metrics.jsonl"), trainer_->steps_done());
  folder_->write_config(resolved_yaml(config_));
  folder_->write_environment(environment_json({.world = peers_.size(),
                                               .threads = num_threads(),
                                               .mesh = to_string(mesh_.shape()),
                                               .device = runtime_info(place_.device).device,
                                               .arguments = options_.arguments}));
  metrics_file_ = std::make_unique<MetricsWriter>(folder_->file("metrics.jsonl"), warn);
  log_file_ = std::make_unique<AppendFile>(folder_->file("log.txt"), warn);
  if (config_.log.tensorboard) {
    tensorboard_ =
        std::make_unique<TensorboardWriter>(folder_->path(), trainer_->steps_done() + 1, warn);
  }
  note(fmt::format("{}: {} parameters, mesh {}, {} threads a rank, {:.2f} GiB a rank",
                   options_.folder, short_count(double(trainer_->store().num_elements())),
                   to_string(mesh_.shape()), num_threads(),
                   double(trainer_->memory_bytes()) / double(1 << 30)));
  if (!memory_note_.empty()) note(memory_note_);
  if (!reproducible_note_.empty()) note(reproducible_note_);
  const std::string launches = trainer_->engine().describe_launches();
  if (!launches.empty()) note(launches);
  if (kBuiltWithCuda && place_.device.is_cpu() && config_.device == DeviceChoice::auto_)
    note("on the CPU: " + why_no_cuda_device());
  for (const std::string& exchange : trainer_->model().exchanges()) note(exchange);
  const Model& model = trainer_->model();
  for (const std::string& kernels : model.kernels(config_.train.micro_batch, config_.train.seq_len))
    note(kernels);
}

void TrainingRun::note(const std::string& text) {
  if (progress_) progress_->note(text);
  if (log_file_) log_file_->append(text + "\n");
}

// What model FLOP/s are a share of: on a GPU the dense bf16 peak that published figures are shares
// of (0: not known), on the CPU the GEMM rate of this rank while all ranks work.
double TrainingRun::measure_peak_flops() {
  if (place_.device.is_cuda()) return published_peak_flops(device_name(place_.device));
  constexpr int64_t kSize = 512;
  constexpr int kRuns = 8;
  Buffer memory(3 * kSize * kSize * sizeof(float), kCpu);
  float* const data = static_cast<float*>(memory.data());
  const auto matrix = [&](int64_t i) {
    return TensorView(data + i * kSize * kSize, {kSize, kSize});
  };
  Arena arena("peak", 0, kCpu);
  const Context ctx{.device = kCpu, .stream = {}, .saved = &arena, .scratch = &arena, .rng = {}};
  world_.comm->barrier().wait();
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    gemm(ctx, {.a = matrix(0), .b = matrix(1), .c = matrix(2)});
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kSize * kSize * kSize / time.count());
  }
  return best;
}

bool TrainingRun::resume() {
  if (options_.resume == "never") return false;
  const bool in_place = options_.resume == "auto";
  std::optional<VerifiedCheckpoint> found;
  try {
    if (!in_place && is_checkpoint(options_.resume)) {
      found = verify_checkpoint(options_.resume, peers_);
    } else {
      const std::string folder = in_place ? checkpoints() : options_.resume + "/checkpoints";
      FoundCheckpoint search = find_checkpoint(folder, peers_);
      for (const std::string& warning : search.warnings) note("WARNING: " + warning);
      found = std::move(search.checkpoint);
    }
  } catch (const Error& error) {
    throw AgreedFailure(error.code(), error.what());  // find and verify throw on all ranks alike
  }
  if (found) {
    resume_from(*found, in_place);
  } else if (!in_place) {
    throw AgreedFailure(
        ExitCode::usage,
        fmt::format("--resume {}: no checkpoint there; give the folder of a run or of a checkpoint",
                    options_.resume));
  }
  return found.has_value();
}

// model.init_from: the weights of another model of the same shape, from wherever one can be loaded.
void TrainingRun::initialise_from(const std::string& path) {
  const LoadedModel source = load_model(path);
  ParameterStore& store = trainer_->store();
  const HostState host(trainer_->engine());
  for (size_t i = 0; i < store.parameters().size(); ++i) {
    const Parameter& parameter = store.parameters()[i];
    const ParameterId id = source.store->find(parameter.name);
    if (id.index < 0 || !(source.store->parameter(id).dims == parameter.global_dims)) {
      throw UsageError(fmt::format(
          "model.init_from: {} has {} {} {}; the configuration needs {}: give it the same model",
          path, id.index < 0 ? "no" : "another", parameter.name,
          id.index < 0 ? "" : to_string(source.store->parameter(id).dims),
          to_string(parameter.global_dims)));
    }
    const float* const whole = source.store->value(id).as<float>();
    std::copy_n(whole + parameter.first_element(), parameter.dims.numel(),
                store.view(host.values.view(), {int32_t(i)}).as<float>());
  }
  host.write_back(trainer_->engine());
}

void TrainingRun::resume_from(const VerifiedCheckpoint& found, bool in_place) {
  ConfigComparison comparison;
  agree(peers_, [&] {
    comparison = compare_configs(
        flat_config(parse_config(found.folder, found.manifest.state.config)), flat_config(config_));
    if (in_place) require_same_locked(comparison, found.folder);
  });
  if (!comparison.locked.empty()) {
    for (const ConfigDifference& difference : comparison.locked) note(describe(difference));
    note(fmt::format("the configuration differs from {}: starting anew from its weights",
                     found.folder));
    start_from_weights(found);
    return;
  }
  for (const ConfigDifference& difference : comparison.logged)
    note("changed: " + describe(difference));
  agree(peers_, [&] {
    try {
      check_data(found);
      load_all(found);
    } catch (const nlohmann::json::exception& error) {
      throw DataError(fmt::format("{}: the data cursor in its manifest cannot be read: {}",
                                  found.folder, error.what()));
    }
  });
  if (in_place && is_main()) {
    pruner_->mark_good(found.manifest.state.step);
    set_aside_newer(checkpoints(), found.manifest.state.step, run_id_);
    saved_step_ = found.manifest.state.step;
  }
  note(fmt::format("resuming from {} at step {}", found.folder, found.manifest.state.step));
  const RuntimeInfo runtime = runtime_info(place_.device);
  for (const std::string& change : runtime_changes(found.manifest.state.runtime, runtime))
    note("WARNING: bits may differ: " + change);
}

void TrainingRun::load_state(const VerifiedCheckpoint& found, LoadScope scope) {
  StepEngine& engine = trainer_->engine();
  const HostState host(engine);
  load_checkpoint(found.folder, found.manifest, sinks_to_load(engine, host, scope), scope);
  host.write_back(engine);
}

void TrainingRun::load_all(const VerifiedCheckpoint& found) {
  load_state(found, LoadScope::all);
  const TrainingState& saved = found.manifest.state;
  trainer_->optimizer().set_t(saved.optimizer_t);
  trainer_->set_steps_done(saved.step, saved.data.at("rows").get<int64_t>());
  last_loss_ = saved.loss;
}

void TrainingRun::start_from_weights(const VerifiedCheckpoint& found) {
  agree(peers_, [&] { load_state(found, LoadScope::model_only); });
}

// The rows to come are a function of the stores' content: another content is another run.
void TrainingRun::check_data(const VerifiedCheckpoint& found) const {
  const auto& stores = found.manifest.state.data.at("stores");
  for (int64_t i = 0; i < trainer_->sampler().num_stores() && i < int64_t(stores.size()); ++i) {
    const TokenStore& store = trainer_->sampler().store(i);
    const std::string saved = stores[i].at("content_hash").get<std::string>();
    if (store.header().content_hash != saved) {
      throw DataError(fmt::format(
          "{} has changed since {} was written: content hash {}, was {}; restore it, or "
          "start a new run from the weights with --run NEW --resume {}",
          store.path(), found.folder, store.header().content_hash, saved, found.folder));
    }
  }
}

ExitCode TrainingRun::run() {
  if (last_step()) {
    note(fmt::format("{} is finished at step {}: nothing to do", options_.folder,
                     trainer_->steps_done()));
    return ExitCode::ok;
  }
  while (!last_step()) {
    const StepReport report = trainer_->step();
    stop_if_hopeless(report);
    StepMetrics metrics = metrics_of(report);
    if (due(config_.train.eval_every) || last_step()) evaluate_into(metrics);
    log(metrics);
    const Requests requests = agree_on_requests();
    if (due(config_.checkpoint.every) || last_step() || requests.checkpoint || requests.stop)
      save();
    if (requests.stop && !last_step()) {
      note(fmt::format("stopped by a signal at step {}: run again to go on",
                       trainer_->steps_done()));
      return ExitCode::requeue;
    }
  }
  if (progress_) progress_->finish();
  return ExitCode::ok;
}

void TrainingRun::stop_if_hopeless(const StepReport& report) {
  last_loss_ = report.loss;
  bad_steps_in_row_ = report.finite ? 0 : bad_steps_in_row_ + 1;
  if (report.finite) return;
  note(fmt::format("step {} is not finite (loss {}, gradient norm {}): update skipped", report.step,
                   report.loss, report.grad_norm));
  if (config_.train.nan_policy == NanPolicy::stop ||
      bad_steps_in_row_ > config_.train.max_bad_steps) {
    throw AgreedFailure(
        ExitCode::not_finite,
        fmt::format("{} steps in a row were not finite, the last was step {}; resume from a "
                    "checkpoint with a lower optimizer.lr",
                    bad_steps_in_row_, report.step));
  }
}

StepMetrics TrainingRun::metrics_of(const StepReport& report) const {
  const int64_t tokens_per_step = config_.train.global_batch * config_.train.seq_len;
  StepMetrics metrics{.step = report.step,
                      .loss = report.loss,
                      .grad_norm = report.grad_norm,
                      .lr = report.lr,
                      .tokens = trainer_->rows_done() * config_.train.seq_len,
                      .tokens_per_s = double(tokens_per_step) / report.step_s,
                      .step_s = report.step_s,
                      .data_wait_s = report.data_wait_s};
  const double flops =
      trainer_->model().flops_per_token(config_.train.seq_len) * metrics.tokens_per_s;
  if (peak_flops_ > 0) metrics.mfu = flops / peak_flops_;
  metrics.memory_gib = double(trainer_->memory_bytes()) / double(1 << 30);
  metrics.skipped = !report.finite;
  if (!report.statistics.expert_counts.empty()) {
    metrics.aux_loss = report.statistics.auxiliary_loss();
    metrics.expert_load_max_over_mean = report.statistics.expert_load_max_over_mean();
  }
  return metrics;
}

void TrainingRun::evaluate_into(StepMetrics& metrics) {
  if (config_.data.valid.empty()) return;
  const EvaluationResult result = trainer_->evaluate_held_out();
  metrics.more.emplace_back("valid_loss", result.loss);
  if (result.bits_per_byte > 0)
    metrics.more.emplace_back("valid_bits_per_byte", result.bits_per_byte);
}

void TrainingRun::log(const StepMetrics& metrics) {
  if (!is_main()) return;
  metrics_file_->write(metrics);
  if (metrics.step % config_.log.every == 0 || last_step()) {
    log_file_->append(to_log_line(metrics, config_.train.steps) + "\n");
  }
  if (tensorboard_) tensorboard_->write(metrics.step, tensorboard_values(metrics));
  progress_->show(metrics);
}

TrainingRun::Requests TrainingRun::agree_on_requests() {
  std::array<int32_t, 2> asked = {signals_.stop_requested() ? 1 : 0,
                                  signals_.take_checkpoint_request() ? 1 : 0};
  world_.comm->all_reduce(TensorView(asked.data(), {2}), ReduceOp::max).wait();
  return {.stop = asked[0] != 0, .checkpoint = asked[1] != 0};
}

// A failed save is told and training goes on; after three in a row the writer throws.
void TrainingRun::save() {
  if (saved_step_ == trainer_->steps_done()) return;
  if (metrics_file_) metrics_file_->sync();
  SaveResult result;
  try {
    const HostState host(trainer_->engine());
    result = writer_->save(state(), pieces_to_save(trainer_->engine(), host));
  } catch (const Error& error) {
    throw AgreedFailure(error.code(), error.what());  // on all ranks alike
  }
  if (!result.problem.empty()) note("WARNING: checkpoint: " + result.problem);
  if (!result.saved) return;
  saved_step_ = trainer_->steps_done();
  if (!is_main()) return;
  pruner_->mark_good(saved_step_);
  for (const std::string& problem : pruner_->prune().problems) note("WARNING: " + problem);
}

TrainingState TrainingRun::state() const {
  nlohmann::json stores = nlohmann::json::array();
  for (int64_t i = 0; i < trainer_->sampler().num_stores(); ++i) {
    const TokenStore& store = trainer_->sampler().store(i);
    stores.push_back({{"path", store.path()}, {"content_hash", store.header().content_hash}});
  }
  return {.step = trainer_->steps_done(),
          .sluice_version = version(),
          .git = git_commit(),
          .config = resolved_yaml(config_),
          .world_size = peers_.size(),
          .mesh = {{"dp", mesh_.shape().dp}, {"ep", mesh_.shape().ep}, {"cp", mesh_.shape().cp}},
          .data = {{"rows", trainer_->rows_done()}, {"stores", std::move(stores)}},
          .rng_seed = uint64_t(config_.seed),
          .rng_step = trainer_->steps_done(),
          .optimizer_t = trainer_->optimizer().t(),
          .runtime = runtime_info(place_.device),
          .loss = last_loss_};
}

}  // namespace sluice
