#include "trainer/verify/gradient_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "layers/routing_tape.h"
#include "trainer/plan.h"
#include "trainer/step_memory.h"
#include "trainer/verify/layout_trace.h"
#include "trainer/verify/tensor_norms.h"

namespace sluice {

namespace {

constexpr int64_t kRows = 2;
// Of the difference quotient, along a direction of length 1: long ones for small gradients, which
// drown in rounding; short ones where the objective bends.
constexpr double kSteps[] = {1e-2, 1e-3, 1e-4};
constexpr double kExact = 1e-8;  // an error that calls for no other step

double dot(const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

std::vector<double> scaled(std::vector<double> x, double factor) {
  for (double& value : x) value *= factor;
  return x;
}

class Checker {
 public:
  explicit Checker(const Config& config)
      : store_(DType::f64),
        model_(config.model, store_, {.recompute = config.train.recompute}),
        batch_(synthetic_rows(config).batch(0, 1, kRows, {})),
        statistics_(model_.expert_branches()) {
    store_.freeze();
    store_.initialise(uint64_t(config.seed));
    gradients_.resize(size_t(store_.flat_size()));
    store_.bind_gradients(TensorView(gradients_.data(), {store_.flat_size()}));
    arenas_ = std::make_unique<StepArenas>(count_training(model_, kRows, config.train.seq_len));
    objective();
    choices_.dictate();
    for (int32_t i = 0; i < int32_t(store_.parameters().size()); ++i) {
      const TensorView grad = store_.grad({i});
      exact_.emplace_back(grad.as<double>(), grad.as<double>() + grad.numel());
    }
    for (const std::vector<double>& grad : exact_) all_ = std::hypot(all_, norm_of(grad));
  }

  std::vector<KindCheck> check() {
    std::vector<KindCheck> kinds;
    for (int32_t i = 0; i < int32_t(store_.parameters().size()); ++i) {
      const Parameter& parameter = store_.parameter({i});
      if (parameter.flags.frozen) continue;
      const std::string kind = parameter_kind(parameter.name);
      auto found = std::find_if(kinds.begin(), kinds.end(),
                                [&](const KindCheck& known) { return known.kind == kind; });
      if (found == kinds.end()) found = kinds.insert(kinds.end(), {.kind = kind, .parameter = {}});
      found->add(parameter.name, error_of({i}));
    }
    return kinds;
  }

 private:
  double objective() {
    std::fill(gradients_.begin(), gradients_.end(), 0);
    const double scale = 1.0 / double(std::max<int64_t>(1, batch_.num_targets()));
    statistics_.zero(arenas_->context());
    Rows rows = batch_.rows();
    rows.step_rows = kRows;
    double loss = 0;
    model_.train(arenas_->context(),
                 {.tokens = batch_.tokens(), .targets = batch_.targets(), .rows = rows},
                 {.loss_scale = ConstTensorView(&scale, {1}),
                  .loss = TensorView(&loss, {1}),
                  .statistics = &statistics_.sink(),
                  .routing = &choices_});
    return scale * loss + statistics_.read(arenas_->context()).auxiliary_loss();
  }

  // Of fourth order: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h.
  double derivative(ParameterId id, const std::vector<double>& direction, double step) {
    double* const value = store_.value(id).as<double>();
    const std::vector<double> kept(value, value + direction.size());
    const auto at = [&](double h) {
      for (size_t k = 0; k < kept.size(); ++k) value[k] = kept[k] + h * direction[k];
      return objective();
    };
    const double near = at(step) - at(-step);
    const double far = at(2 * step) - at(-2 * step);
    std::copy(kept.begin(), kept.end(), value);
    return (8 * near - far) / (12 * step);
  }

  // The measure of comparisons, along directions of length 1: a random one of n elements sees 1 /
  // sqrt(n) of a gradient.
  double error_of(ParameterId id) {
    const std::vector<double>& grad = exact_[id.index];
    const double norm = norm_of(grad);
    const double scale = comparison_scale(norm, all_);
    const double size = std::sqrt(double(grad.size()));
    std::vector<double> random;
    const RngKey key{.seed = 1, .stream = uint64_t(id.index)};
    for (size_t k = 0; k < grad.size(); ++k) random.push_back(random_normal(key, k) / size);
    double error = size * deviation(id, random, dot(grad, random), kExact * scale / size) / scale;
    if (norm > 0) {
      const std::vector<double> along = scaled(grad, 1 / norm);
      const double also = deviation(id, along, norm, kExact * scale) / scale;
      if (is_worse(also, error)) error = also;
    }
    return error;
  }

  // |difference quotient - expected|, by the best step.
  double deviation(ParameterId id, const std::vector<double>& direction, double expected,
                   double enough) {
    double least = std::numeric_limits<double>::infinity();
    for (const double step : kSteps) {
      const double deviation = std::fabs(derivative(id, direction, step) - expected);
      if (!(deviation >= least)) least = deviation;
      if (least <= enough) break;
    }
    return least;
  }

  ParameterStore store_;
  Model model_;
  Batch batch_;
  StatisticsBuffer statistics_;
  std::unique_ptr<StepArenas> arenas_;
  std::vector<double> gradients_;
  RoutingTape choices_;
  std::vector<std::vector<double>> exact_;  // per parameter
  double all_ = 0;                          // norm of all gradients
};

}  // namespace

void KindCheck::add(const std::string& name, double error_of_it) {
  ++parameters;
  if (!parameter.empty() && !is_worse(error_of_it, error)) return;
  error = error_of_it;
  parameter = name;
}

std::vector<KindCheck> check_gradients(const Config& reduced) { return Checker(reduced).check(); }

}  // namespace sluice
