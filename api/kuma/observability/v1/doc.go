// Package observabilityv1 holds the messages and the service with which monitoring systems such as Prometheus learn which
// proxies to scrape. Names and field numbers are Kuma's.
package observabilityv1
