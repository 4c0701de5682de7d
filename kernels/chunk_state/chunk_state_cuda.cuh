// What kernels of chunk_state share: one chunk of one head as they see it.
#pragma once

#include "kernels/chunk_state/chunk_state.h"
#include "kernels/core/chunks.h"
#include "kernels/device/dispatch.cuh"

namespace sluice::cuda {

template <class T>
struct ChunkStateInputs {
  const T *x, *B;
  const float *dt, *cum;
  const int32_t* doc_begin;
  int64_t x_stride, B_stride, dt_stride, cum_stride, doc_begin_stride;
  int64_t tokens, H, P, G, N, chunk, M;
};

template <class T, class Args>
ChunkStateInputs<T> chunk_state_inputs(const Args& args) {
  return {.x = pointer<T>(args.x),
          .B = pointer<T>(args.B),
          .dt = args.dt.template as<float>(),
          .cum = args.cum.template as<float>(),
          .doc_begin = args.doc_begin.template as<int32_t>(),
          .x_stride = args.x.row_stride,
          .B_stride = args.B.row_stride,
          .dt_stride = args.dt.row_stride,
          .cum_stride = args.cum.row_stride,
          .doc_begin_stride = args.doc_begin.row_stride,
          .tokens = args.x.dim(1),
          .H = args.x.dim(2),
          .P = args.x.dim(3),
          .G = args.B.dim(2),
          .N = args.B.dim(3),
          .chunk = args.chunk,
          .M = num_chunks(args.x.dim(1), args.chunk)};
}

// S: of dstate.
template <class T, class S>
struct ChunkStateGradients {
  const S* dstate;
  const float* dlog_decay;
  T *dx, *dB;
  float *ddt, *dcum;
  int64_t dstate_stride, dlog_decay_stride, dx_stride, dB_stride, ddt_stride, dcum_stride;
};

template <class T, class S>
ChunkStateGradients<T, S> chunk_state_gradients(const ChunkStateBackward& args) {
  return {.dstate = pointer<S>(args.dstate),
          .dlog_decay = args.dlog_decay.as<float>(),
          .dx = pointer<T>(args.dx),
          .dB = pointer<T>(args.dB),
          .ddt = args.ddt.as<float>(),
          .dcum = args.dcum.as<float>(),
          .dstate_stride = args.dstate.row_stride,
          .dlog_decay_stride = args.dlog_decay.row_stride,
          .dx_stride = args.dx.row_stride,
          .dB_stride = args.dB.row_stride,
          .ddt_stride = args.ddt.row_stride,
          .dcum_stride = args.dcum.row_stride};
}

// The rows, counted over the batch, that reach a chunk's state: those of its last document.
struct ChunkRows {
  int64_t begin, end;  // end - 1 is the chunk's last token
  bool starts;         // a document starts in the chunk

  template <class T>
  __device__ ChunkRows(const ChunkStateInputs<T>& in, int64_t chunk_row) {
    const int64_t b = chunk_row / in.M;
    const ChunkSpan span(chunk_row % in.M, in.chunk, in.tokens);
    const int64_t document = in.doc_begin[b * in.doc_begin_stride + span.end - 1];
    starts = document >= span.begin;
    begin = b * in.tokens + (starts ? document : span.begin);
    end = b * in.tokens + span.end;
  }
};

}  // namespace sluice::cuda
