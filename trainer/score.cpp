#include "trainer/score.h"

#include <algorithm>

#include "data/batch.h"
#include "data/hdf5_file.h"
#include "data/token_store.h"
#include "kernels/core/device_memory.h"
#include "kernels/core/error.h"
#include "trainer/device_batch.h"
#include "trainer/json_file.h"
#include "trainer/open_file.h"
#include "trainer/step_memory.h"

namespace sluice {

namespace {

constexpr JsonLimits kTokenLimits{
    .max_bytes = int64_t{256} << 20, .max_depth = 2, .max_values = 64'000'000};

bool is_hdf5(const std::string& path) {
  constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
  const OpenFile file(path);
  std::string bytes(kSignature.size(), '\0');
  if (file.bytes() < bytes.size()) return false;
  file.read(0, bytes.size(), bytes.data());
  return bytes == kSignature;
}

TokenRows read_json_rows(const std::string& path, int64_t vocab_size) {
  const Json json = read_json_file(path, kTokenLimits);
  TokenRows rows;
  const std::string whole = path + ": the whole";
  for (const Json& row : json_array(json, whole)) {
    const std::string where = concat(path, ": row ", rows.size());
    rows.emplace_back();
    for (const Json& id : json_array(row, where)) {
      const std::string what = concat(where, ", token ", rows.back().size());
      rows.back().push_back(int32_t(json_integer(id, what, 0, vocab_size - 1)));
    }
  }
  return rows;
}

TokenRows read_store_rows(const std::string& path, int64_t vocab_size) {
  TokenStore store(path);
  if (store.header().vocab_size > vocab_size) {
    throw DataError(concat(path, ": has a vocabulary of ", store.header().vocab_size,
                           ", the model one of ", vocab_size));
  }
  TokenRows rows;
  for (int64_t document = 0; document < store.num_documents(); ++document) {
    const int64_t begin = store.doc_offsets()[document];
    rows.emplace_back(store.doc_offsets()[document + 1] - begin);
    store.read(begin, int64_t(rows.back().size()), rows.back().data());
  }
  return rows;
}

Batch one_document(int64_t index, const std::vector<int32_t>& row) {
  Batch::Row document{
      .tokens = row, .targets = row, .doc_begin = std::vector<int32_t>(row.size(), 0)};
  std::rotate(document.targets.begin(), document.targets.begin() + 1, document.targets.end());
  document.targets.back() = -1;
  Batch batch(index, 1, int64_t(row.size()), {});
  batch.set_row(0, document);
  return batch;
}

int64_t longest(const TokenRows& rows) {
  size_t tokens = 0;
  for (const auto& row : rows) tokens = std::max(tokens, row.size());
  return int64_t(tokens);
}

void allocate_outputs(const LoadedModel& loaded, const TokenRows& rows, const ScoreRequest& request,
                      Scores& scores) {
  const DType dtype = loaded.store->dtype();
  if (request.logits) {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i].size() == rows[0].size()) continue;
      throw UsageError(concat("logits are one tensor, so all rows need one length: row 0 has ",
                              rows[0].size(), " tokens, row ", i, " has ", rows[i].size()));
    }
    const Dims dims{scores.rows, int64_t(rows[0].size()), loaded.config.vocab_size};
    scores.logits_storage =
        Buffer(dims.numel() * size_of(stat_dtype(dtype)), loaded.model->device());
    scores.logits =
        TensorView(scores.logits_storage.data(), dims, stat_dtype(dtype), loaded.model->device());
  }
  // Counting the memory of a pass looks at the gradients' shapes in any case.
  TensorView gradients(nullptr, {loaded.store->flat_size()}, stat_dtype(dtype),
                       loaded.model->device());
  if (request.gradients) {
    scores.gradients_storage =
        Buffer(gradients.numel() * size_of(gradients.dtype), gradients.device);
    gradients.data = scores.gradients_storage.data();
    scores.gradients = gradients;
  }
  loaded.store->bind_gradients(gradients);
}

ArenaPeaks peaks_of(const LoadedModel& loaded, int64_t T) {
  const ArenaPeaks training = count_training(*loaded.model, 1, T);
  const ArenaPeaks logits = count_logits(*loaded.model, 1, T);
  return {.saved = std::max(training.saved, logits.saved),
          .scratch = std::max(training.scratch, logits.scratch)};
}

// Files are written from there.
void to_host_memory(Scores& scores, Stream stream) {
  const auto move = [&](TensorView& tensor, Buffer& storage) {
    if (!tensor || tensor.device.is_cpu()) return;
    Buffer host(tensor.numel() * size_of(tensor.dtype), kCpu);
    copy_bytes(host.data(), kCpu, tensor.data, tensor.device, host.bytes(), stream);
    stream.sync();
    tensor = TensorView(host.data(), tensor.dims, tensor.dtype);
    storage = std::move(host);
  };
  move(scores.logits, scores.logits_storage);
  move(scores.gradients, scores.gradients_storage);
}

}  // namespace

TokenRows read_token_rows(const std::string& path, int64_t vocab_size) {
  TokenRows rows =
      is_hdf5(path) ? read_store_rows(path, vocab_size) : read_json_rows(path, vocab_size);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].empty()) throw DataError(concat(path, ": row ", i, " is empty"));
  }
  return rows;
}

Scores score(const LoadedModel& loaded, const TokenRows& rows, const ScoreRequest& request,
             Stream stream) {
  Scores scores;
  scores.rows = int64_t(rows.size());
  for (const auto& row : rows) scores.tokens += int64_t(row.size());
  scores.targets = scores.tokens - scores.rows;
  if (scores.targets <= 0) {
    throw UsageError("there is nothing to predict: at least one row needs two tokens");
  }
  allocate_outputs(loaded, rows, request, scores);
  const Device device = loaded.model->device();
  StepArenas arenas(peaks_of(loaded, longest(rows)), {.device = device, .stream = stream});
  const Context ctx = arenas.context();
  const Buffer numbers(2 * sizeof(double), device);
  const TensorView both(numbers.data(), {2}, DType::f64, device);
  const TensorView loss = both.columns(0, {1}), scale = both.columns(1, {1});
  const double per_target = 1 / double(scores.targets);
  copy_bytes(scale.data, device, &per_target, kCpu, sizeof(double), stream);
  DeviceBatch here;
  double loss_sum = 0;
  for (int64_t i = 0; i < scores.rows; ++i) {
    here.load(ctx, one_document(i, rows[i]));
    const ModelInput input = here.input();
    if (request.gradients) {
      loaded.model->train(ctx, input, {.loss_scale = scale, .loss = loss});
    } else {
      loaded.model->evaluate(ctx, input, loss);
    }
    loss_sum += to_host(loss, stream).front();
    if (request.logits) {
      const TensorView row = scores.logits.slice(i);
      loaded.model->logits(ctx, input, row.reshape({1, row.dim(0), row.dim(1)}));
    }
  }
  scores.loss = loss_sum / double(scores.targets);
  to_host_memory(scores, stream);
  return scores;
}

void write_logits(const std::string& path, const Scores& scores) {
  SLUICE_CHECK(bool(scores.logits), "no logits were asked for");
  const Dims& dims = scores.logits.dims;
  Hdf5Writer file;
  file.write("logits", {stored_type(scores.logits.dtype), {dims[0], dims[1], dims[2]}},
             scores.logits.data);
  file.finish_to(path);
}

void write_gradients(const std::string& path, const LoadedModel& loaded, const Scores& scores) {
  SLUICE_CHECK(bool(scores.gradients), "no gradients were asked for");
  Hdf5Writer file;
  for (const SourceTensor& tensor : loaded.tensors) {
    if (loaded.store->parameter(tensor.parameter).flags.frozen) continue;
    const TensorView gradient = loaded.store->view(scores.gradients, tensor.parameter);
    const int64_t begin = tensor.begin * int64_t(size_of(gradient.dtype));
    file.write(tensor.name, {stored_type(gradient.dtype), tensor.shape},
               static_cast<const char*>(gradient.data) + begin);
  }
  file.finish_to(path);
}

}  // namespace sluice
