package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the server's instruments. Labels are bounded: route is a pattern of the routing table.
type metrics struct {
	requests *prometheus.CounterVec   // route, method, code
	duration *prometheus.HistogramVec // route, method
	inFlight prometheus.Gauge
	watches  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meridian_http_requests_total",
			Help: "Requests answered by the HTTP API, by route pattern, method and status code.",
		}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "meridian_http_request_duration_seconds",
			Help:    "Time from the header of a request to the end of its answer, watches left out.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9), // 0.1 ms to 6.6 s
		}, []string{"route", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meridian_http_requests_in_flight",
			Help: "Requests that the HTTP API is working on, watches left out.",
		}),
		watches: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meridian_http_watches",
			Help: "Lists that are being watched over the HTTP API.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.inFlight, m.watches} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// statusWriter remembers what was answered.
type statusWriter struct {
	http.ResponseWriter
	status int // 0: nothing yet
	bytes  int64
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err //nolint:wrapcheck // the writer is transparent
}

// Unwrap serves http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// observe counts, times and logs every request, and turns a panic into a 500 that says nothing.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		sw := &statusWriter{ResponseWriter: w}
		s.metrics.inFlight.Inc()
		defer func() {
			p := recover()
			abort := p == http.ErrAbortHandler //nolint:errorlint // the documented way to compare it
			if p != nil && !abort {
				err := fmt.Errorf("panic: %v\n%s", p, debug.Stack())
				if sw.status == 0 {
					s.fail(sw, r, internal(detailsInternal, err))
				} else {
					s.log.ErrorContext(r.Context(), "request failed after its answer began", "path", r.URL.Path, "err", err)
					abort = true
				}
			}
			s.metrics.inFlight.Dec()
			s.count(sw, r, time.Since(start))
			if abort {
				panic(http.ErrAbortHandler) // cut the connection: the client must not take the answer for complete
			}
		}()
		next.ServeHTTP(sw, r)
	})
}

func (s *Server) count(sw *statusWriter, r *http.Request, took time.Duration) {
	route := chi.RouteContext(r.Context()).RoutePattern()
	if route == "" {
		route = "unmatched"
	}
	method := r.Method
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPost, http.MethodOptions:
	default:
		method = "other"
	}
	s.metrics.requests.WithLabelValues(route, method, strconv.Itoa(max(sw.status, http.StatusOK))).Inc()
	if sw.Header().Get("Content-Type") != eventStream { // a watch takes as long as its client likes
		s.metrics.duration.WithLabelValues(route, method).Observe(took.Seconds())
	}
	if s.log.Enabled(r.Context(), slog.LevelDebug) {
		s.log.DebugContext(r.Context(), "request",
			"method", r.Method, "path", r.URL.Path, "route", route, "status", sw.status, "bytes", sw.bytes,
			"duration", took, "remote", r.RemoteAddr)
	}
}

// cors lets pages of the configured origins read answers, and answers their preflight requests.
func (s *Server) cors(next http.Handler) http.Handler {
	if len(s.origins) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin")
		origin := r.Header.Get("Origin")
		if origin == "" || !originMatches(s.origins, origin) {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Expose-Headers", "Access-Control-Allow-Origin, Allow, ETag, Meridian-Dry-Run, Meridian-Revision, Retry-After, Warning, X-Request-Id")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			h.Set("Access-Control-Allow-Methods", "PUT,DELETE,GET,POST")
			if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
				h.Set("Access-Control-Allow-Headers", asked)
			}
			h.Set("Content-Length", "0")
			w.WriteHeader(http.StatusOK)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func originMatches(origins []*regexp.Regexp, origin string) bool {
	host := ""
	if u, err := url.Parse(origin); err == nil {
		host = u.Hostname()
	}
	for _, re := range origins {
		if re.MatchString(origin) || (host != "" && re.MatchString(host)) {
			return true
		}
	}
	return false
}

// cleanPath hands the router the decoded path with aliases resolved, so that "+" and "%2B" are the same. The request
// keeps its own path: links to further pages repeat it. An encoded slash belongs to no name and matches nothing.
func cleanPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := canonical(r.URL.Path)
		if r.URL.RawPath != "" && strings.Contains(strings.ToLower(r.URL.RawPath), "%2f") {
			path = "/%2f"
		}
		chi.RouteContext(r.Context()).RoutePath = path
		next.ServeHTTP(w, r)
	})
}
